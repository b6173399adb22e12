"""What the cgroup of this process (a Slurm job's, a container's) allows it: memory and CPU, in versions 1 and 2."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")
UNLIMITED = 1 << 60  # bytes; version 1 says so with a number near 2**63


def folders(controller: str, root: Path = ROOT, membership: Path = MEMBERSHIP) -> Iterator[tuple[Path, int]]:
    """This process' cgroup and its parents, where ``controller`` is at work, each with its version (1 or 2)."""
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
    """Cores' worth of CPU time that may be used, the least over the cgroup and its parents; None without a quota."""
    found: list[float] = []
    for folder, version in folders("cpu", root, membership):
        with suppress(OSError, ValueError, ZeroDivisionError):
            if version == 2:
                quota, period = (folder / "cpu.max").read_text().split()  # "max" is a ValueError below: no limit
            else:
                quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
            if float(quota) > 0:
                found.append(float(quota) / float(period))
    return min(found, default=None)


def usable_cores() -> float:
    """Cores that this process may keep busy: those it may run on, and no more than its quota."""
    try:
        allowed = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        allowed = os.cpu_count() or 1
    quota = cpu_quota()
    return float(allowed) if quota is None else min(float(allowed), quota)


def memory_limit(root: Path = ROOT, membership: Path = MEMBERSHIP) -> int | None:
    """Bytes that may be used, the least over the cgroup and its parents; None without a limit."""
    found: list[int] = []
    for folder, version in folders("memory", root, membership):
        with suppress(OSError, ValueError):
            limit = int((folder / ("memory.max" if version == 2 else "memory.limit_in_bytes")).read_text())
            if limit < UNLIMITED:
                found.append(limit)
    return min(found, default=None)


def throttled_seconds(root: Path = ROOT, membership: Path = MEMBERSHIP) -> float | None:
    """Seconds in which the quota was used up and nothing could run, so far; None where that is not counted."""
    found: list[float] = []
    for folder, version in folders("cpu", root, membership):
        with suppress(OSError, ValueError):
            for line in (folder / "cpu.stat").read_text().splitlines():
                name, _, value = line.partition(" ")
                if name == ("throttled_usec" if version == 2 else "throttled_time"):
                    found.append(int(value) / (1e6 if version == 2 else 1e9))
    return max(found, default=None)
