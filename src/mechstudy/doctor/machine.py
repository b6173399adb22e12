"""Checks of Python, memory, cores and drivers, without torch."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from mechstudy.core.sizes import human
from mechstudy.doctor.check import Check
from mechstudy.machine import cgroup
from mechstudy.machine.hardware import cpu, nvidia_smi
from mechstudy.machine.memory import available_memory_bytes, total_memory_bytes

_LITTLE = 4e9  # bytes; the smallest studies need about 2 GB
_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def python() -> list[Check]:
    """The interpreter, and the packages that decide speed."""
    versions = [f"Python {platform.python_version()}"]
    missing = []
    for name in ("torch", "transformers", "numba"):
        try:
            versions.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    if missing:
        return [
            Check("python", "bad", f"{', '.join(versions)}; missing: {', '.join(missing)}", "pip install mechstudy")
        ]
    return [Check("python", "ok", ", ".join(versions))]


def memory() -> list[Check]:
    """Available memory, within the limit of a cgroup, and swap in use."""
    total, available, limit = total_memory_bytes(), available_memory_bytes(), cgroup.memory_limit()
    text = f"{human(available)} available of {human(total)}"
    if limit is not None and limit < total:
        text += f"; this job or container may use {human(limit)}"
    swap = psutil.swap_memory()
    if swap.total and swap.used > 0.5 * swap.total:
        fix = "stop other processes: a study that swaps is a hundred times slower"
        return [Check("memory", "warn", f"{text}; {human(swap.used)} of {human(swap.total)} swap in use", fix)]
    if available < _LITTLE:
        fix = "stop other processes, or ask for more (compute.slurm.memory); `mechstudy plan` shows what a study needs"
        return [Check("memory", "warn", text, fix)]
    return [Check("memory", "ok", text)]


def cores(environment: Mapping[str, str] = os.environ) -> list[Check]:
    """Usable cores beside all cores and the threads that libraries would start."""
    described, usable, quota = cpu(), cgroup.usable_cores(), cgroup.cpu_quota()
    flags = [flag for flag in described["flags"] if flag in ("amx_bf16", "avx512_bf16", "avx512f", "avx2")]
    text = f"{described['model']}: {usable:g} of {described['count']} cores may be used"
    text += f" (a quota of {quota:g})" if quota is not None and quota < described["usable"] else ""
    text += f"; {', '.join(flags) or 'no AVX2'}"
    checks = [Check("cores", "ok", text)]
    if not flags:
        checks = [Check("cores", "warn", text, "kernels of dictionary training are slow without AVX2")]
    if quota is not None and quota < 0.95 * described["usable"]:
        fix = f"compute.threads: {max(1, int(quota))} (more threads would be stopped within each tenth of a second)"
        checks.append(Check("CPU quota", "warn", f"{quota:g} cores' worth of {described['usable']} visible cores", fix))
    asked = environment.get("OMP_NUM_THREADS", "")
    if asked.isdecimal() and int(asked) > usable:
        fix = "unset it, or set compute.threads"
        checks.append(Check("OMP_NUM_THREADS", "warn", f"{asked} threads on {usable:g} cores", fix))
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load > 1.5 * described["count"]:
        fix = "wait, or ask for a whole node: timings and speed suffer"
        checks.append(Check("load", "warn", f"{load:.1f} processes want {described['count']} cores", fix))
    return checks


def huge_pages() -> list[Check]:
    """Whether large arrays get huge pages, which save a tenth of dictionary training's time on CPUs."""
    if not _HUGE_PAGES.exists():
        return []
    now = _HUGE_PAGES.read_text().partition("[")[2].partition("]")[0]
    if now == "never":
        fix = "an administrator can: echo madvise > " + str(_HUGE_PAGES)
        return [Check("huge pages", "warn", "never: dictionary training on the CPU is slower", fix)]
    return [Check("huge pages", "ok", now)]


def gpu_driver() -> list[Check]:
    """GPUs as the driver reports them."""
    if shutil.which("nvidia-smi") is None:
        return [Check("GPU driver", "ok", "no nvidia-smi here: everything runs on the CPU")]
    listing = nvidia_smi()
    if listing is None:
        return [
            Check("GPU driver", "warn", "nvidia-smi fails", "run nvidia-smi: its message says why; studies use the CPU")
        ]
    lines = [line.strip() for line in listing.splitlines() if line.strip()]
    return [Check("GPU driver", "ok", "; ".join(lines[1:] or lines))]
