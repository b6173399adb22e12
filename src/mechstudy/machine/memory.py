"""Peak memory of this process, and the memory that it may still take (cgroup limits included)."""

from __future__ import annotations

import resource
import sys
from contextlib import suppress
from pathlib import Path

from mechstudy.machine import cgroup


def peak_rss_bytes() -> int:
    """The largest resident set of this process since its start, or since `reset_peak_rss`."""
    with suppress(OSError, ValueError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def reset_peak_rss() -> bool:
    """Starts a new peak (Linux), so that each unit of one process has its own. False where impossible."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
        return True
    return False


def peak_gpu_bytes() -> int | None:
    """The most memory that torch had allocated on a GPU since `reset_peak_gpu`; None where it uses none."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    return max(int(torch.cuda.max_memory_allocated(i)) for i in range(torch.cuda.device_count()))


def reset_peak_gpu() -> None:
    """Starts a new peak on every GPU."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        for i in range(torch.cuda.device_count()):
            torch.cuda.reset_peak_memory_stats(i)


def available_memory_bytes() -> int:
    """Bytes this process can still take: the machine's, or what its cgroup (Slurm, container) leaves."""
    import psutil

    available = int(psutil.virtual_memory().available)
    left = cgroup.memory_left(cgroup.memory_limits())
    return available if left is None else min(available, left)


def total_memory_bytes() -> int:
    """The machine's physical memory in bytes."""
    import psutil

    return int(psutil.virtual_memory().total)


def memory_limit_bytes() -> int:
    """The most bytes this process may ever take: the machine's, or the smallest limit of its cgroups."""
    total, limit = total_memory_bytes(), cgroup.memory_limit()
    return total if limit is None else min(total, limit)
