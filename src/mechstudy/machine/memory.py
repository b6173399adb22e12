"""How much memory this process took at most, and how much it may still take (cgroup limits included)."""

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
    """Starts a new peak (Linux), so that units run in one process are told apart. False where impossible."""
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
    left = _cgroup_left(cgroup.ROOT, cgroup.MEMBERSHIP)
    return available if left is None else min(available, left)


def total_memory_bytes() -> int:
    """The machine's physical memory in bytes."""
    import psutil

    return int(psutil.virtual_memory().total)


def memory_limit_bytes() -> int:
    """The most bytes this process may ever take: the machine's, or the smallest limit of its cgroups."""
    limit = total_memory_bytes()
    for folder, version in cgroup.folders("memory", cgroup.ROOT, cgroup.MEMBERSHIP):
        name = "memory.limit_in_bytes" if version == 1 else "memory.max"
        with suppress(OSError, ValueError):
            limit = min(limit, int((folder / name).read_text()))
    return limit


def _cgroup_left(root: Path, membership: Path) -> int | None:
    """The smallest (limit - used) over this process's cgroup and its parents; None without a limit.

    Page cache counts as used by the kernel but is given back on demand, so inactive file pages are subtracted.
    """
    smallest: int | None = None
    for folder, version in cgroup.folders("memory", root, membership):
        limit_name, used_name, cache_key = (
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            if version == 1
            else ("memory.max", "memory.current", "inactive_file")
        )
        with suppress(OSError, ValueError):
            limit = int((folder / limit_name).read_text())  # "max" is a ValueError: no limit here
            used = int((folder / used_name).read_text())
            left = limit - used + _stat(folder / "memory.stat", cache_key)
            smallest = max(0, left if smallest is None else min(smallest, left))
    return smallest


def _stat(path: Path, key: str) -> int:
    with suppress(OSError, ValueError):
        for line in path.read_text().splitlines():
            name, _, value = line.partition(" ")
            if name == key:
                return int(value)
    return 0
