"""Counters of this process, its children and the machine.

On Linux they come from files below /proc that stay open: reading one again is a single system call. A sample
costs a tenth of what it costs through psutil, which reads them elsewhere (macOS) and finds the children everywhere.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil

from mechstudy.machine import cgroup
from mechstudy.machine.memory import available_memory_bytes

_PROC = Path("/proc")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_WAITS = ("cpu", "io", "memory")
_MOST_BYTES = 1 << 16  # of one file: /proc/stat of a machine with hundreds of cores
_CHILDREN_EVERY = 10.0  # seconds between searches for new children: on a full login node one costs 100 ms
_CHILDREN_SHARE = 2000  # and at least this many times the duration of the last search
# Fields of /proc/<pid>/stat after the name, which is in brackets and may hold anything.
_TIMES, _RSS = slice(11, 15), 21  # user, system, and those of ended children


class Used(NamedTuple):
    """What processes used since they began: CPU seconds (ended children included), resident bytes, bytes of disk."""

    cpu: float
    rss: int
    read: int | None
    write: int | None


class Machine(NamedTuple):
    """The machine's fields of `record.Sample`. What cannot be read is None."""

    machine_cpu: float | None = None
    swap: int | None = None
    available: int | None = None
    wait_cpu: float | None = None
    wait_io: float | None = None
    wait_memory: float | None = None
    throttled: float | None = None


class OneProcess:
    """The counters of one process."""

    def __init__(self, process: psutil.Process) -> None:
        self._process = process
        self._files = _open_all(_PROC / str(process.pid), "stat", "io")  # io: others' cannot be read

    def used(self) -> Used:
        """What it has used so far.

        Raises:
            OSError, psutil.Error: it has ended, even if another process has its number now.
        """
        if not self._files:
            times = self._process.cpu_times()
            return Used(float(sum(times[:4])), int(self._process.memory_info().rss), None, None)
        stat = os.pread(self._files["stat"], _MOST_BYTES, 0)
        fields = stat[stat.rindex(b")") + 2 :].split(None, _RSS + 1)
        cpu = sum(map(int, fields[_TIMES])) / os.sysconf("SC_CLK_TCK")
        io = _content(self._files, "io")
        read, write = _number(io, b"\nread_bytes: "), _number(io, b"\nwrite_bytes: ")
        return Used(cpu, int(fields[_RSS]) * _PAGE, read, write)

    def close(self) -> None:
        """Closes its files."""
        _close_all(self._files)


class ProcessTree:
    """This process and its descendants. New ones are searched for every few seconds of ``clock``."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._root = psutil.Process()
        self._tree = {self._root.pid: OneProcess(self._root)}
        self._search_at = float("-inf")

    def used(self) -> Used:
        """The sum over the tree; what an ended child used is in its parent's counters."""
        if self._clock() >= self._search_at:
            self._search()
        used = []
        for pid, process in list(self._tree.items()):
            try:
                used.append(process.used())
            except (OSError, psutil.Error):
                self._tree.pop(pid).close()
        read = [one.read for one in used if one.read is not None]
        write = [one.write for one in used if one.write is not None]
        cpu, rss = sum(one.cpu for one in used), sum(one.rss for one in used)
        return Used(cpu, rss, sum(read) if read else None, sum(write) if write else None)

    def close(self) -> None:
        """Closes the files of every process."""
        while self._tree:
            self._tree.popitem()[1].close()

    def _search(self) -> None:
        began = time.perf_counter()
        with suppress(psutil.Error, OSError):
            for child in self._root.children(recursive=True):
                if child.pid not in self._tree:
                    self._tree[child.pid] = OneProcess(child)
        took = time.perf_counter() - began
        self._search_at = self._clock() + max(_CHILDREN_EVERY, _CHILDREN_SHARE * took)


class MachineCounters:
    """The counters of the machine and of the cgroups this process is in."""

    def __init__(self, root: Path = cgroup.ROOT, membership: Path = cgroup.MEMBERSHIP) -> None:
        self._files = _open_all(_PROC, "stat", "meminfo", "vmstat", *(f"pressure/{name}" for name in _WAITS))
        self._limits = cgroup.memory_limits(root, membership)
        self._groups = [(_open_all(group, "cpu.stat"), v) for group, v in cgroup.folders("cpu", root, membership)]

    def read(self) -> Machine:
        """The counters now."""
        if "stat" not in self._files:
            return self._without_proc()
        available = _number(_content(self._files, "meminfo"), b"MemAvailable:")
        if available is not None:
            left = cgroup.memory_left(self._limits)
            available = 1024 * available if left is None else min(1024 * available, left)
        vmstat = _content(self._files, "vmstat")
        swapped = (_number(vmstat, b"pswpin "), _number(vmstat, b"pswpout "))
        swap = None if swapped[0] is None or swapped[1] is None else (swapped[0] + swapped[1]) * _PAGE
        waits = [_number(_content(self._files, f"pressure/{name}"), b"total=") for name in _WAITS]  # first line: "some"
        wait_cpu, wait_io, wait_memory = (None if wait is None else wait / 1e6 for wait in waits)
        return Machine(self._busy(), swap, available, wait_cpu, wait_io, wait_memory, self._throttled())

    def close(self) -> None:
        """Closes the files."""
        for files in (self._files, *(files for files, _ in self._groups)):
            _close_all(files)

    def _busy(self) -> float | None:
        """CPU seconds of all cores, except idle ones and those that wait for a disk; guests count as users already."""
        words = _content(self._files, "stat").split(b"\n", 1)[0].split()
        if len(words) < 6:
            return None
        user, nice, system, _idle, _iowait, *rest = (int(word) for word in words[1:9])
        return (user + nice + system + sum(rest)) / os.sysconf("SC_CLK_TCK")

    def _throttled(self) -> float | None:
        """Seconds so far in which a quota of this process was used up."""
        seconds = []
        for files, version in self._groups:
            key, second = (b"throttled_usec ", 1e6) if version == 2 else (b"throttled_time ", 1e9)
            if (value := _number(_content(files, "cpu.stat"), key)) is not None:
                seconds.append(value / second)
        return max(seconds, default=None)

    @staticmethod
    def _without_proc() -> Machine:
        with suppress(psutil.Error, OSError, RuntimeError):
            times, swap = psutil.cpu_times(), psutil.swap_memory()
            return Machine(float(sum(times) - times.idle), int(swap.sin + swap.sout), available_memory_bytes())
        return Machine()


def _open_all(folder: Path, *names: str) -> dict[str, int]:
    """Descriptors of the files that can be opened."""
    files = {}
    for name in names:
        with suppress(OSError):
            files[name] = os.open(folder / name, os.O_RDONLY | os.O_CLOEXEC)
    return files


def _close_all(files: dict[str, int]) -> None:
    while files:
        os.close(files.popitem()[1])


def _content(files: dict[str, int], name: str) -> bytes:
    """What an open file says now; empty where it cannot be read."""
    with suppress(OSError, KeyError):
        return os.pread(files[name], _MOST_BYTES, 0)
    return b""


def _number(text: bytes, key: bytes) -> int | None:
    """The number after the first occurrence of a key; None where there is none."""
    _, separator, rest = text.partition(key)
    return int(rest[:32].split(None, 1)[0]) if separator else None
