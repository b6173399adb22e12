"""Memory and CPU limits of this process's cgroup (a Slurm job's, a container's), versions 1 and 2."""

from __future__ import annotations

import os
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
        base = root / controllers if controllers and (root / controllers).is_dir() else root
        if controllers and base == root:
            base = root / controller
        folder = base / group.lstrip("/")
        while True:
            yield folder, 1 if controllers else 2
            if folder == base or base not in folder.parents:
                break
            folder = folder.parent


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


def usable_cores() -> float:
    """Cores that this process may keep busy: its affinity, capped by its quota."""
    try:
        allowed = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        allowed = os.cpu_count() or 1
    quota = cpu_quota()
    return float(allowed) if quota is None else min(float(allowed), quota)


@dataclass(frozen=True)
class MemoryLimit:
    """The memory limit of one cgroup in bytes, and the files that count its use."""

    bytes: int
    used: Path
    stat: Path
    cache_key: str

    def left(self) -> int:
        """Bytes left. Page cache counts as used, but the kernel frees inactive file pages on demand."""
        left = self.bytes - int(self.used.read_text()) + (_stat(self.stat, self.cache_key) or 0)
        return max(0, left)


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


def _stat(file: Path, key: str) -> int | None:
    """The value of one key of a cgroup's ``*.stat`` file."""
    with suppress(OSError, ValueError, IndexError):
        return int(f"\n{file.read_text()}".split(f"\n{key} ", 1)[1].split("\n", 1)[0])
    return None
