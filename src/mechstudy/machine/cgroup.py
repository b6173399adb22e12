"""Memory and CPU limits of this process's cgroup (a Slurm job's, a container's), versions 1 and 2."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")
_UNLIMITED = 1 << 60  # bytes; version 1 writes a number near 2**63


def folders(controller: str, root: Path = ROOT, membership: Path = MEMBERSHIP) -> Iterator[tuple[Path, int]]:
    """This process's cgroup and its parents under ``controller``, each with its version (1 or 2)."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        base = root
        if controllers:
            base = root / (controllers if (root / controllers).is_dir() else controller)
        own = base / group.lstrip("/")
        for folder in (own, *own.parents):
            yield folder, 1 if controllers else 2
            if folder == base:
                break


def cpu_quota(root: Path = ROOT, membership: Path = MEMBERSHIP) -> float | None:
    """Cores' worth of CPU time: the smallest quota of the cgroup and its parents; None without a quota."""
    quotas: list[float] = []
    for folder, version in folders("cpu", root, membership):
        with suppress(OSError, ValueError, ZeroDivisionError):
            if version == 2:
                quota, period = (folder / "cpu.max").read_text().split()  # "max" is a ValueError below: no limit
            else:
                quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
            if float(quota) > 0:
                quotas.append(float(quota) / float(period))
    return min(quotas, default=None)


def allowed_cores() -> int:
    """Cores in this process's affinity; all of them on macOS, which has none."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def usable_cores() -> float:
    """Cores that this process may keep busy: its affinity, capped by its quota."""
    quota = cpu_quota()
    return float(allowed_cores()) if quota is None else min(float(allowed_cores()), quota)


@dataclass(frozen=True)
class MemoryLimit:
    """The memory limit of one cgroup in bytes, and the files that count its use."""

    bytes: int
    used: Path
    stat: Path
    cache_key: str

    def left(self) -> int:
        """Bytes left. Page cache counts as used, but the kernel frees inactive file pages on demand."""
        cached = 0
        with suppress(OSError):
            if match := re.search(rf"^{self.cache_key} (\d+)$", self.stat.read_text(), re.MULTILINE):
                cached = int(match[1])
        return max(0, self.bytes - int(self.used.read_text()) + cached)


def memory_limits(root: Path = ROOT, membership: Path = MEMBERSHIP) -> list[MemoryLimit]:
    """The limits of the cgroup and of its parents."""
    limits = []
    for folder, version in folders("memory", root, membership):
        names = ("memory.max", "memory.current", "inactive_file")
        if version == 1:
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        with suppress(OSError, ValueError):
            limit = int((folder / names[0]).read_text())  # "max" is a ValueError: no limit
            if limit < _UNLIMITED:
                limits.append(MemoryLimit(limit, folder / names[1], folder / "memory.stat", names[2]))
    return limits


def memory_limit(root: Path = ROOT, membership: Path = MEMBERSHIP) -> int | None:
    """Bytes: the smallest limit of the cgroup and its parents; None without a limit."""
    return min((limit.bytes for limit in memory_limits(root, membership)), default=None)


def memory_left(limits: Iterable[MemoryLimit]) -> int | None:
    """Bytes left within the tightest of these limits; None without a limit."""
    left: list[int] = []
    for limit in limits:
        with suppress(OSError, ValueError):
            left.append(limit.left())
    return min(left, default=None)
